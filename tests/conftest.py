"""What every test may use: the fixtures `devcluster`, `namespace`, `s3`, `own_s3`, `gs`
and `own_gs`."""

pytest_plugins = ["daybreak_devcluster.pytest_plugin", "s3_server", "google_server"]
