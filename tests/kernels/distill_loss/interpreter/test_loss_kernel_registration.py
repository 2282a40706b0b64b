"""The promises of `test_loss_registration.py`, with the Triton kernels beneath the ops."""

from test_loss_registration import (  # noqa: F401
    test_a_compiled_call_is_one_graph_with_equal_results,
    test_both_ops_pass_opcheck,
    test_inside_a_compiled_training_step_under_autocast,
)
