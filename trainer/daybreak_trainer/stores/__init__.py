"""How this trainer reaches a store: PVC paths and object stores, through fsspec.

Checkpoints, exports and data streams are opened by `filesystem.open_filesystem`, so all of them
understand the same Secrets, wait equally long and fail with the same errors.
"""
