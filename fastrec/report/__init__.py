"""Statistics of one run or several as a page that opens in a browser."""

from fastrec.report.page import write_report as write_report
