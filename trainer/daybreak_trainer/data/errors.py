"""What can be wrong with the data, told apart by whether another attempt could go better."""


class BadDataError(Exception):
    """The data itself is at fault, and a worker ends with exit code 65.

    The message names the dataset and the file, what is wrong with it, and what to do.
    """


class DatasetError(BadDataError):
    """The dataset as a whole cannot be used: no index, no samples, wrong columns."""


class ShardError(BadDataError):
    """One shard is missing, truncated or damaged."""


class ShardMissingError(ShardError):
    """One shard is not there: asking once more would not help."""


class DataUnavailableError(Exception):
    """The data may be sound, but its store or the cache's volume did not do its part.

    Not final: another attempt, perhaps on another node, may succeed. The message names the shard.
    """
