"""A forked child knows that it is one."""

import os

import pytest

from fastrec._torch.process import FORKS
from tests.engines.programs import run


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_forks_are_counted_in_the_child_alone_and_callbacks_run_there() -> None:
    assert FORKS.count == 0
    assert run(
        """
        from fastrec._torch.process import FORKS
        FORKS.call_in_child(lambda: print("called in child", FORKS.count, flush=True))
        child = os.fork()
        if child:
            os.waitpid(child, 0)
            print("parent", FORKS.count)
        else:
            grandchild = os.fork()
            if grandchild:
                os.waitpid(grandchild, 0)
            os._exit(0)
        """
    ) == ["called in child 1", "called in child 2", "parent 0"]
