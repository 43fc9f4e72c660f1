"""The whole stack on one machine, out of Python packages, and simulated workloads; only tests import it."""
