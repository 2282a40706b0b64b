"""The promises of `test_loss_registration.py`, with the Triton kernels beneath the ops."""

import pytest

from tests.kernels.distill_loss.test_loss_registration import (  # noqa: F401
    test_a_compiled_call_is_one_graph_with_equal_results,
    test_both_ops_pass_opcheck,
    test_inside_a_compiled_training_step_under_autocast,
)

# NumPy computes the lanes that a mask throws away, and warns of them.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
