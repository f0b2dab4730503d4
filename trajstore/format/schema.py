"""Names of the format, under their former module."""

from trajstore.format.arrays import *
from trajstore.format.run_spec import *

FORMAT = "trajstore"
FORMAT_VERSION = 1
STATUSES = ("running", "complete", "failed")
