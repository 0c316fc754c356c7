from pathlib import Path

import pytest

from somvq.errors import DefinitionError
from somvq.settings import Settings, mask, origin, read_settings


@pytest.fixture(autouse=True)
def nothing_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(f"SOMVQ_{name.upper()}", raising=False)


def test_the_command_line_wins_over_the_environment_and_that_over_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (read_settings().runs, origin("runs", {})) == (Path("runs"), "default")
    Path("somvq.yaml").write_text("runs: from-file\nwandb_project: lab\n")
    assert (read_settings().runs, origin("runs", {})) == (Path("from-file"), "somvq.yaml")
    monkeypatch.setenv("SOMVQ_RUNS", "from-variable")
    assert (read_settings().runs, origin("runs", {})) == (Path("from-variable"), "SOMVQ_RUNS")
    given = {"runs": Path("from-command-line")}
    assert (read_settings(**given).runs, origin("runs", given)) == (Path("from-command-line"), "command line")
    assert read_settings(runs=None).wandb_project == "lab"


def test_an_unknown_or_impossible_setting_is_named_with_its_source(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("somvq.yaml").write_text("runz: x\n")
    with pytest.raises(DefinitionError, match=r"somvq.yaml: runz is not a setting; did you mean 'runs'\?"):
        read_settings()
    Path("somvq.yaml").write_text("wandb: perhaps\n")
    with pytest.raises(DefinitionError, match=r"somvq.yaml: wandb 'perhaps' is impossible: .*'offline' or 'disabled'"):
        read_settings()
    monkeypatch.setenv("SOMVQ_WANDB", "maybe")
    with pytest.raises(DefinitionError, match="SOMVQ_WANDB: wandb 'maybe' is impossible"):
        read_settings()


@pytest.mark.parametrize("text", ["runs: [", "\tx: 1", "- runs\n", "just words"])
def test_a_settings_file_that_is_none_is_refused_in_one_line(text: str) -> None:
    Path("somvq.yaml").write_text(text)
    with pytest.raises(DefinitionError, match=r"somvq\.yaml") as refusal:
        read_settings()
    assert "\n" not in str(refusal.value)


def test_an_empty_settings_file_says_nothing() -> None:
    Path("somvq.yaml").write_text("")
    assert read_settings() == Settings()


def test_passwords_are_masked_and_nothing_else() -> None:
    assert mask("postgresql://me:secret@host:5432/db") == "postgresql://me:***@host:5432/db"
    assert mask("postgresql://me:p@ss:w@host/db") == "postgresql://me:***@host/db"
    assert mask("sqlite:////data/a.db") == "sqlite:////data/a.db"
