from . import loop as loop
from . import protocols as protocols
