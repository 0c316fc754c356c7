"""How often a trial may be tried again, by how its attempts ended.

    killed, or its worker was      free; but FRUITLESS times in a row without an epoch, and the trial is at fault
    infrastructure                 RETRIES times in a row, then the worker gives up and the trial waits
    memory                         with half as many scans at once, the same batch, down to one scan
    diverged, collapsed, failed    never: the trial is over

A child that the kernel killed for want of memory says nothing of it; the kernel's own count does.
"""

from somvq.config import batch_size
from somvq.data.cohort import Cohort
from somvq.runs import Outcome, Run
from somvq.study.patience import Blocked

RETRIES = 3
RETRY_S = 1.0  # before the first of them; each next one waits twice as long
FRUITLESS = 3


class Retries:
    """The retries of one run, by one worker; an epoch gained makes them whole again."""

    def __init__(self, run: Run):
        self.run = run
        self.blocked = self.fruitless = 0

    def spend(self, outcome: Outcome, *, gained: bool) -> float:
        """Seconds to wait before the next attempt; the run is `failed` instead if there is to be none.

        Raises:
            Blocked: it cannot be trained here now.
        """
        if gained:
            self.blocked = self.fruitless = 0
        if outcome == "memory":
            return self.halve()
        if outcome == "infrastructure":
            return self.count_blocked()
        self.fruitless += 1
        if self.fruitless == FRUITLESS:
            why = f"killed {FRUITLESS} times without finishing an epoch; see {self.run.log}"
            self.run.set_state("failed", why, error="Killed")
        return 0.0

    def count_blocked(self) -> float:
        """One more attempt that the disk, the cohort or the device made impossible."""
        if self.blocked == RETRIES:
            why = self.run.progress().reason or f"{self.run.folder} cannot be written; is the disk full?"
            raise Blocked(f"{why} ({RETRIES + 1} attempts)")
        self.blocked += 1
        return RETRY_S * 2.0 ** (self.blocked - 1)

    def halve(self) -> float:
        """Half as many scans in memory at once."""
        record = self.run.record
        whole = batch_size(record.config.batch_size, len(Cohort(record.cohort).rows["train"]))
        now = self.run.progress().micro_batch or whole
        if now == 1:
            self.run.set_state("failed", "out of memory with one scan at a time", error="OutOfMemory")
        else:
            self.run.set_micro_batch(now // 2)
        return 0.0
