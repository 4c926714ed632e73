"""Statistics of the reports."""


def wilson_interval(successes, n):
    """95% Wilson score interval [low, high] of a binomial proportion (Wilson 1927, JASA 22)."""
    from scipy.stats import binomtest
    return list(binomtest(int(successes), int(n)).proportion_ci(method="wilson"))
