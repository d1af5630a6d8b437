"""Everything in fastrec that depends on how torch works inside.

``versions`` decides what depends on the version of torch, ``internals`` lists the private names, and ``dynamo`` holds
what is known of ``torch.compile``. The other files build on them: the stack of function modes, guards and copies of
tensors, tensors in nested values, a model that is put back as it was.
"""

from fastrec._torch.versions import check_torch

# Before anything else here looks for private names, which a torch that is too old does not have.
check_torch()
