"""Statements on controls: random walks, gradients that are noise, random labels."""

from collections.abc import Mapping

from analyzers.no_wrong_turns.claims.verdict import (
    UNKNOWN,
    Finding,
    Measured,
    exceeds,
    inside,
    listed,
)


def exceeds_random_walk(excesses: Mapping[str, Measured]) -> Finding:
    """Test whether gamma of SGD is larger than that of a random walk like it.

    Parameters
    ----------
    excesses : mapping from str to Measured
        Mid-run means of what gamma exceeds that of the walk by; ``sgd``, and others for
        information.

    Returns
    -------
    Finding
        Seen if that of ``sgd``, whose steps are along the sampled gradients, is positive.
    """
    return Finding(
        claim="Mid-run, gamma of SGD without momentum is more than the choice of x* as the "
        "end of the path gives a random walk with the same step lengths.",
        figure="controls",
        seen=inside(excesses.get("sgd", UNKNOWN), low=0),
        numbers=f"gamma less that of the walk: {listed(excesses.items())}.",
    )


def noise_is_below_training(gammas: Mapping[str, Measured]) -> Finding:
    """Test whether gamma is smaller where gradients were replaced by noise.

    Parameters
    ----------
    gammas : mapping from str to Measured
        Mid-run means by control: ``none`` and ``noise-gradients``.

    Returns
    -------
    Finding
        Seen if that of noise is smaller.
    """
    return Finding(
        claim="Gradients replaced by noise of the same norm have a smaller gamma than "
        "those of training.",
        figure="controls",
        seen=exceeds(
            gammas.get("none", UNKNOWN), gammas.get("noise-gradients", UNKNOWN)
        ),
        numbers=listed(gammas.items()) + ".",
    )


def random_labels_are_positive(gamma: Measured) -> Finding:
    """Test whether gamma is positive without anything to learn but by heart.

    Parameters
    ----------
    gamma : Measured
        Mid-run mean of a run with random labels.

    Returns
    -------
    Finding
        Seen if it is.
    """
    return Finding(
        claim="gamma is positive with random labels, too.",
        figure="controls",
        seen=inside(gamma, low=0),
        numbers=f"The mid-run mean is {gamma}.",
    )
