from analyzers import *
from analyzers import plots as plots
