"""What every test may use: the fixtures `devcluster` and `namespace`, and those of
`bucket_fixtures`."""

pytest_plugins = ["daybreak_devcluster.pytest_plugin", "bucket_fixtures"]
