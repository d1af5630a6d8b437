"""What can be done with the files of recordings beside loading and recovering them."""

from fastrec.files._describe import Description as Description
from fastrec.files._describe import FileFacts as FileFacts
from fastrec.files._describe import describe as describe
