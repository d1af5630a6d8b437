"""Statistics of a run: per site and time bin, from values that are seen once."""

from fastrec.statistics.measures import MEASURES as MEASURES
from fastrec.statistics.measures import Measure as Measure
from fastrec.statistics.run import RunStatistics as RunStatistics
from fastrec.statistics.run import SiteStatistics as SiteStatistics
