"""The Triton kernels under TRITON_INTERPRET=1 keep what every implementation promises."""

import pytest

from deit_kernels.distill_loss import op
from tests.kernels.distill_loss.loss_cases import Case, full_options, make_call
from tests.kernels.distill_loss.test_loss_accuracy import (  # noqa: F401
    test_a_gradient_that_nearly_cancels_keeps_its_digits,
    test_the_error_is_at_most_twice_that_of_plain_pytorch,
)
from tests.kernels.distill_loss.test_loss_checks import (  # noqa: F401
    test_a_call_that_skips_the_checks_of_python_is_refused_in_their_words,
)
from tests.kernels.distill_loss.test_loss_contracts import (  # noqa: F401
    test_a_batch_that_is_no_power_of_two,
    test_a_grad_scaler_loses_nothing_in_float16,
    test_a_row_may_be_expanded_over_the_batch,
    test_a_row_of_minus_infinity_alone_is_nan_and_no_other,
    test_a_second_derivative_comes_from_the_differentiable_reference,
    test_binary_cross_entropy_alone,
    test_cross_entropy_alone,
    test_each_kind_of_call,
    test_each_number_of_classes,
    test_each_number_of_rows,
    test_every_run_gives_the_same_bits_and_inputs_keep_theirs,
    test_extreme_logits,
    test_kl_divergence_alone,
    test_labels_may_be_any_view,
    test_lam_of_zero_or_one_takes_nothing_from_an_infinite_logit,
    test_rows_may_have_any_stride,
    test_the_full_product,
    test_the_incoming_gradient_may_have_any_stride,
    test_the_loss_may_be_scaled_added_and_taken_twice_on_the_same_logits,
    test_weights_of_zero_and_one,
)

# NumPy computes the lanes that a mask throws away, and warns of them.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def test_the_public_function_runs_the_kernels() -> None:
    from deit_kernels.distill_loss import launch

    call = op.checks.distillation_call(**full_options(make_call(Case(), 1, 10)))
    assert op._implementation(call) is launch
