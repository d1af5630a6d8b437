"""What is measured of values over a run, per site and time bin, and how it is shown: tables, pictures, a page."""

from fastrec.report.measures import MEASURES as MEASURES
from fastrec.report.measures import Measure as Measure
from fastrec.report.page import write_report as write_report
from fastrec.report.run import RunStatistics as RunStatistics
from fastrec.report.run import SiteStatistics as SiteStatistics
