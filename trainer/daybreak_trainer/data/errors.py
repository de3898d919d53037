"""What can be wrong with a dataset. All of them end a worker with exit code 65."""


class BadData(Exception):  # noqa: N818 (the field's word)
    """The message names the dataset and the file, what is wrong with it, and what to do."""


class DatasetError(BadData):
    """The dataset as a whole cannot be used: no index, no samples, wrong columns."""


class ShardError(BadData):
    """One shard is missing, truncated or damaged."""
