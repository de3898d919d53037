"""versitygw, the S3 server of the tests.

`python tests/support/versitygw.py` fills the user's cache and prints the path.
"""

import sys

from go_program import GoProgram

from daybreak_devcluster.steps import StepError

VERSITYGW = GoProgram(
    name="versitygw",
    package="github.com/versity/versitygw/cmd/versitygw",
    version="v1.8.0",
    oldest_go=(1, 25),
    what="the S3 server of the tests",
)

if __name__ == "__main__":
    try:
        print(VERSITYGW.find(lambda line: print(line, file=sys.stderr, flush=True)))
    except StepError as error:
        sys.exit(f"error: {error}")
