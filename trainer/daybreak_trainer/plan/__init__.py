"""How long a run may be and how it is laid out: pure, and without torch, so that the operator and
the command line plan with the code that the run plans with."""
