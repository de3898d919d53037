"""Progress and metrics of a worker."""
