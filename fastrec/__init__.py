"""fastrec records what a PyTorch model computes while it runs again and again, and keeps what a predicate asks for."""

from fastrec._errors import FastrecError as FastrecError
from fastrec._errors import FastrecWarning as FastrecWarning
from fastrec.dryrun.dry_run import DryRun as DryRun
from fastrec.dryrun.dry_run import dry_run as dry_run
from fastrec.events.capture import CaptureSpec as CaptureSpec
from fastrec.events.context import RecordContext as RecordContext
from fastrec.files._load import load as load
from fastrec.files._load import recover as recover
from fastrec.recording._recording import ActivationRecord as ActivationRecord
from fastrec.recording._recording import Recording as Recording
from fastrec.session.failures import halt as halt
from fastrec.session.record import record as record
from fastrec.session.recorder import Recorder as Recorder
