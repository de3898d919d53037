"""versitygw, the S3 server of the tests.

`python tests/support/versitygw.py` fills the user's cache and prints the path.
"""

from go_program import GoProgram

VERSITYGW = GoProgram(
    name="versitygw",
    package="github.com/versity/versitygw/cmd/versitygw",
    version="v1.8.0",
    oldest_go=(1, 25),
    what="the S3 server of the tests",
)

if __name__ == "__main__":
    VERSITYGW.print_path()
