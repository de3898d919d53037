"""What every test may use: the fixtures `devcluster` and `namespace`."""

pytest_plugins = ["daybreak_devcluster.pytest_plugin"]
