from . import branch as branch
from . import record as record
from . import replay as replay
from . import sweep as sweep
from . import two_run as two_run
