"""Everything in fastrec that depends on how torch works inside.

``internals`` lists the private names, ``dynamo`` holds what is known of ``torch.compile``. The other files build on
them: the stack of function modes, guards and copies of tensors, tensors in nested values, a model that is put back as
it was.
"""
