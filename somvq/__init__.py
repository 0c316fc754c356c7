"""Optuna studies of discrete auto-encoders of T1 brain MRI."""

__version__ = "0.1.0"
