"""What can be wrong with a dataset. All of them end a worker with exit code 65."""


class BadDataError(Exception):
    """The message names the dataset and the file, what is wrong with it, and what to do."""


class DatasetError(BadDataError):
    """The dataset as a whole cannot be used: no index, no samples, wrong columns."""


class ShardError(BadDataError):
    """One shard is missing, truncated or damaged."""
