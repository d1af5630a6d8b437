"""What can be done with the files of recordings beside loading and recovering them."""

from fastrec.files._describe import Description as Description
from fastrec.files._describe import FileFacts as FileFacts
from fastrec.files._describe import describe as describe
from fastrec.files._merge import Merged as Merged
from fastrec.files._merge import merge as merge
from fastrec.files._repack import Repacked as Repacked
from fastrec.files._repack import repack as repack
from fastrec.files._verify import Damage as Damage
from fastrec.files._verify import Verified as Verified
from fastrec.files._verify import verify as verify
