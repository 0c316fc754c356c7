"""From scans on disk to batches."""
