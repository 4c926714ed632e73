"""Statistics of the reports."""


def proportion_interval(successes, n):
    """95 % interval [low, high] of a proportion (Wilson 1927, JASA 22)."""
    from scipy.stats import binomtest
    return list(binomtest(int(successes), int(n)).proportion_ci(method="wilson"))
