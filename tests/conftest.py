"""What every test may use: the fixtures `devcluster`, `namespace`, `s3` and `own_s3`."""

pytest_plugins = ["daybreak_devcluster.pytest_plugin", "s3_server"]
