"""What a task's evaluation is held to where all joint states can be enumerated."""


def check_bounds(evaluate, log_q, log_joint, largest_tolerance):
    """The ELBO is the enumerated one; the bound rises with the samples to ``log p(x)`` and stays below, in the mean.

    Tolerances are 6 standard errors of a mean over the images, from the exact spread of the log weights.

    Args:
        evaluate: of a number of samples, the metrics ``elbo`` and ``bound`` ``[replicas]``.
        log_q, log_joint: ``[states, replicas, images]``.
        largest_tolerance: what the tolerance of the largest bound must be below.

    Returns:
        The metrics with 1, 10, 100 and 3000 samples.
    """
    exact, log_weight = log_joint.logsumexp(0), log_joint - log_q
    elbo = (log_q.exp() * log_weight).sum(0)
    spread = ((log_q.exp() * log_weight**2).sum(0) - elbo**2).clamp_min(0)
    every, errors = [], []
    for samples in (1, 10, 100, 3000):
        found = evaluate(samples)
        error = (spread.mean(-1) / samples / spread.shape[-1]).sqrt().double()
        assert ((found["elbo"] - elbo.mean(-1)).abs() < 6 * error + 1e-4).all()
        assert (found["bound"] < exact.mean(-1) + 6 * error + 1e-4).all()
        if every:
            assert (found["bound"] > every[-1]["bound"] - 6 * (errors[-1] + error)).all()
        every.append(found)
        errors.append(error)
    # At m samples the log of the mean weight has variance chi2 / m and bias -chi2 / 2m to first order.
    chi2 = ((log_joint + log_weight).logsumexp(0) - 2 * exact).exp().mean(-1) - 1
    tolerance = 6 * (chi2 / 3000 / exact.shape[-1]).sqrt() + chi2 / 3000
    bound = every[-1]["bound"]
    assert ((bound - exact.mean(-1)).abs() < tolerance).all() and (tolerance < largest_tolerance).all()
    assert bound.mean() > elbo.mean() + 0.05  # the two differ here, so the limits are told apart
    return every
