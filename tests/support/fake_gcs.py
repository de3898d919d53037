"""fake-gcs-server, the Cloud Storage of the tests.

`python tests/support/fake_gcs.py` fills the user's cache and prints the path.
"""

from go_program import GoProgram

FAKE_GCS = GoProgram(
    name="fake-gcs-server",
    package="github.com/fsouza/fake-gcs-server",
    version="v1.56.1",
    oldest_go=(1, 26),
    what="the Cloud Storage of the tests",
)

if __name__ == "__main__":
    FAKE_GCS.print_path()
