"""One Optuna study in parts: its record, space, storage, claims, trials, workers, status."""
