"""The numbers of the assignment, found in other ways: by scikit-learn, and in plain NumPy."""

import itertools
import re

import numpy as np
import pytest
from conftest import FRACTION, GRID, NAMES, SEED

from softmax_sgd import cross_entropy, gradients


def test_scikit_learn_agrees_on_the_optimum():
    """Its C weighs the summed loss against ||W||^2 / 2: alpha = 1 / (n C)."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(2)
    X, y, alpha = rng.uniform(0, 1, (50, 6)), rng.permutation(np.arange(50) % 10), 0.1
    peer = linear_model.LogisticRegression(C=1 / (alpha * 50), tol=1e-10, max_iter=10000)
    peer.fit(X, y)
    W, b = peer.coef_.T, peer.intercept_
    theirs = -np.log(peer.predict_proba(X)[range(50), y]).mean()
    np.testing.assert_allclose(cross_entropy(W, b, X, y), theirs, rtol=1e-9)
    for gradient in gradients(W, b, X, y, alpha):
        np.testing.assert_allclose(gradient, 0, atol=1e-7)


# --- The homework in plain NumPy ------------------------------------------------------------------
#
# In float64: `divide` the images, `train` the models, `choose` and test. Models of one batch size
# lie along the first axis of W and b. Each function can make mistakes that were found in students'
# solutions. `NUMBERS` come out.

NUMBERS = (
    "batch size",
    "learning rate",
    "alpha",
    "epochs",
    "training cross-entropy",
    "validation cross-entropy",
    "validation accuracy",
    "test cross-entropy",
    "test accuracy",
)
PRINTED = re.compile(
    r"\nBest: batch size (\S+), learning rate (\S+), alpha (\S+), epochs (\S+)\n(?:Note.*\n)*"
    r"\nTraining cross-entropy: (\S+)"
    r"\nValidation cross-entropy: (\S+)\nValidation accuracy: (\S+)%"
    r"\nTest cross-entropy \(unregularized\): (\S+)\nTest accuracy: (\S+)%\n$"
)

OTHER_END = "the other end of the permutation validates: as right as ours, but these tests pin ours"
DATA_MISTAKES = [
    "the images are not divided by 255",
    "the test images are not divided by 255",
    "the images are standardised by the training images",
    "the images are standardised by the training and the test images",
    "the split ignores --seed",
    "the split is stratified",
    "the images are not shuffled before the split",
    OTHER_END,
    "the validation images train, too",
    "validation is on the training images",
    "the test set is inside the search",
]


def divide(folder, mistake=None):
    """(X, y) for training, for validation and for the test."""
    X, y, X_test, y_test = (np.load(folder / name) for name in NAMES)
    if mistake == "the images are standardised by the training images":
        X, X_test = (X - X.mean()) / X.std() * 255, (X_test - X.mean()) / X.std() * 255
    if mistake == "the images are standardised by the training and the test images":
        both = np.concatenate([X, X_test])
        X, X_test = (images - both.mean() for images in (X, X_test))
        X, X_test = (images / both.std() * 255 for images in (X, X_test))
    if mistake != "the images are not divided by 255":
        X = X / 255
        if mistake != "the test images are not divided by 255":
            X_test = X_test / 255

    rng = np.random.default_rng(0 if mistake == "the split ignores --seed" else SEED)
    order = rng.permutation(len(X))
    if mistake == "the images are not shuffled before the split":
        order = np.arange(len(X))
    n_validation = round(FRACTION * len(X))
    validation, train = order[:n_validation], order[n_validation:]
    if mistake == OTHER_END:
        train, validation = order[:-n_validation], order[-n_validation:]
    if mistake == "the split is stratified":
        classes = [order[y[order] == label] for label in range(10)]
        validation = np.concatenate([rows[: round(FRACTION * len(rows))] for rows in classes])
        train = np.array([row for row in order if row not in validation])
    if mistake == "the validation images train, too":
        train = order
    if mistake == "validation is on the training images":
        validation = train
    judged = X[validation], y[validation]
    if mistake == "the test set is inside the search":
        judged = X_test, y_test
    return {"rows": train, "all": (X, y), "validation": judged, "test": (X_test, y_test)}


TRAINING_MISTAKES = [
    "alpha is missing from the gradient",
    "alpha is divided by n",
    "alpha is divided by the batch size",
    "the biases are regularised, too",
    "the minibatches ignore --seed",
    "all batch sizes draw the same random numbers",
    "one random stream is used on from model to model",
    "all examples are one minibatch",
    "each example is a minibatch",
    "the start is random",
    "the examples are not shuffled",
    "the order is the same in each epoch",
    "the last, smaller minibatch is dropped",
    "the last, smaller minibatch is divided by the full size",
    "only the last minibatch's update is kept",
    "the bias never learns",
    "the bias goes up its gradient",
    "the bias is dropped after each epoch",
    "momentum of 0.9 is used",
    "the learning rate is halved every 5 epochs",
    "the learning rate is divided by the number of the epoch",
    "the weights go on from one model to the next",
]


IN_TURN = [  # with these mistakes, one model depends on the one before
    "one random stream is used on from model to model",
    "the weights go on from one model to the next",
]


def log_softmax(W, b, X):
    z = X @ W + b[..., None, :]
    z -= z.max(axis=-1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


def metrics(W, b, X, y):
    log_yhat = log_softmax(W, b, X)
    return -log_yhat[range(len(y)), y].mean(), (log_yhat.argmax(axis=1) == y).mean()


def train(parts, mistake=None):
    """{(batch size, learning rate, alpha, epoch): (W, b)}."""
    models = {}
    stream = np.random.default_rng(SEED)
    m = parts["all"][0].shape[1]
    start = np.zeros((m, 10)), np.zeros(10)
    if mistake == "the start is random":
        start = stream.normal(0, 0.01, (m, 10)), np.zeros(10)
    # In this order, the first of equals is the one that wins.
    pairs = list(itertools.product(GRID.learning_rates, GRID.alphas[::-1]))
    groups = [[pair] for pair in pairs] if mistake in IN_TURN else [pairs]
    for batch_size, group in itertools.product(GRID.batch_sizes[::-1], groups):
        seed = 0 if mistake == "the minibatches ignore --seed" else SEED
        rng = np.random.default_rng([seed, batch_size])
        if mistake == "all batch sizes draw the same random numbers":
            rng = np.random.default_rng(SEED)
        if mistake == "one random stream is used on from model to model":
            rng = stream
        epochs = epochs_of(batch_size, np.array(group), *start, parts, rng, mistake)
        for epoch, (W, b) in enumerate(epochs, start=1):
            for k, pair in enumerate(group):
                models[(batch_size, *pair, epoch)] = W[k], b[k]
        if mistake == "the weights go on from one model to the next":
            start = W[-1], b[-1]
    return models


def epochs_of(batch_size, pairs, W, b, parts, rng, mistake=None):
    """Yield W (models, m, 10) and b (models, 10) after each epoch of models that start at W, b.

    `pairs` has a learning rate and an alpha for each model.
    """
    (X, y), rows_to_train = parts["all"], parts["rows"]
    Y = np.eye(10)[y]
    learning_rate, alpha = pairs.T
    decay = alpha
    if mistake == "alpha is missing from the gradient":
        decay = 0 * alpha
    if mistake == "alpha is divided by n":
        decay = alpha / len(rows_to_train)
    if mistake == "alpha is divided by the batch size":
        decay = alpha / batch_size
    if mistake == "all examples are one minibatch":
        batch_size = len(rows_to_train)
    if mistake == "each example is a minibatch":
        batch_size = 1

    first_order = rng.permutation(rows_to_train)
    velocity_W, velocity_b = 0, 0
    for epoch in range(1, GRID.epochs + 1):
        order = first_order if epoch == 1 else rng.permutation(rows_to_train)
        if mistake == "the order is the same in each epoch":
            order = first_order
        if mistake == "the examples are not shuffled":
            order = rows_to_train
        rate = learning_rate
        if mistake == "the learning rate is halved every 5 epochs":
            rate = learning_rate * 0.5 ** ((epoch - 1) // 5)
        if mistake == "the learning rate is divided by the number of the epoch":
            rate = learning_rate / epoch
        before = W, b
        for first in range(0, len(order), batch_size):
            rows = order[first : first + batch_size]
            X_batch, n = X[rows], len(rows)
            if mistake == "the last, smaller minibatch is dropped" and n < batch_size:
                continue
            if mistake == "the last, smaller minibatch is divided by the full size":
                n = batch_size
            if mistake == "only the last minibatch's update is kept":
                W, b = before
            D = np.exp(log_softmax(W, b, X_batch)) - Y[rows]
            dW, db = X_batch.T @ D / n + decay[:, None, None] * W, D.sum(axis=-2) / n
            if mistake == "the biases are regularised, too":
                db = db + decay[:, None] * b
            if mistake == "the bias never learns":
                db = 0 * db
            if mistake == "the bias goes up its gradient":
                db = -db
            if mistake == "momentum of 0.9 is used":
                velocity_W, velocity_b = 0.9 * velocity_W + dW, 0.9 * velocity_b + db
                dW, db = velocity_W, velocity_b
            W, b = W - rate[:, None, None] * dW, b - rate[:, None] * db
        if mistake == "the bias is dropped after each epoch":
            b = 0 * b
        yield W, b


CHOICE_MISTAKES = [
    "selection by the regularised loss",
    "selection by accuracy",
    "selection by the training cross-entropy",
    "the last epoch of each model is compared, not its best",
    "the weights tested are those of the last epoch",
    "the validation metrics are those of the last epoch",
    "the highest accuracy of the winner is reported",
    "the training cross-entropy includes the validation images",
    "the winner is trained again on the training and the validation images",
    "the biases are dropped in the test",
    "the metrics of the test are those of validation",
    "the cross-entropy of the test is regularised",
    "the cross-entropy of validation, as reported, is regularised",
    "the last point of the grid is reported as the best",
    "one epoch too few is reported",
    "one epoch too many is reported",
    "the cross-entropies are in bits: a factor of 1/ln 2",
    "a fraction is printed with %",
    "the percentage of errors is printed",
]


def choose(parts, models, mistake=None):
    """The NUMBERS: the hyperparameters of the best model, and its metrics."""
    X, y = parts["all"]
    training = X[parts["rows"]], y[parts["rows"]]
    best, lowest, curves = None, np.inf, {}
    for point, (W, b) in models.items():
        ce, accuracy = metrics(W, b, *parts["validation"])
        curves[point] = ce, accuracy
        rank = ce
        if mistake == "selection by the regularised loss":
            rank = ce + point[2] / 2 * (W**2).sum()
        if mistake == "selection by accuracy":
            rank = -accuracy
        if mistake == "selection by the training cross-entropy":
            rank = metrics(W, b, *training)[0]
        late = point[3] == GRID.epochs
        if mistake == "the last epoch of each model is compared, not its best" and not late:
            continue
        if rank < lowest - 1e-9:
            best, lowest = point, rank

    *winner, epochs = best
    W, b = models[best]
    if mistake == "the weights tested are those of the last epoch":
        W, b = models[(*winner, GRID.epochs)]
    if mistake == "the winner is trained again on the training and the validation images":
        all_rows = parts | {"rows": np.arange(len(X))}
        rng = np.random.default_rng([SEED, winner[0]])
        again = list(epochs_of(winner[0], np.array([winner[1:]]), 0 * W, 0 * b, all_rows, rng))
        (W,), (b,) = again[epochs - 1]
    penalty = winner[2] / 2 * (W**2).sum()
    trained, _ = metrics(W, b, *training)
    if mistake == "the training cross-entropy includes the validation images":
        trained, _ = metrics(W, b, X, y)
    validated = list(curves[best])
    tested = list(metrics(W, b, *parts["test"]))
    if mistake == "the validation metrics are those of the last epoch":
        validated = list(curves[(*winner, GRID.epochs)])
    if mistake == "the highest accuracy of the winner is reported":
        validated[1] = max(curves[(*winner, e + 1)][1] for e in range(GRID.epochs))
    if mistake == "the cross-entropy of validation, as reported, is regularised":
        validated[0] += penalty
    if mistake == "the biases are dropped in the test":
        tested = list(metrics(W, 0 * b, *parts["test"]))
    if mistake == "the metrics of the test are those of validation":
        tested = validated
    if mistake == "the cross-entropy of the test is regularised":
        tested[0] += penalty
    if mistake == "the last point of the grid is reported as the best":
        winner, epochs = [axis[-1] for axis in GRID[:3]], GRID.epochs
    if mistake == "one epoch too few is reported":
        epochs -= 1
    if mistake == "one epoch too many is reported":
        epochs += 1
    numbers = np.array([*winner, epochs, trained, *validated, *tested], float)
    cross_entropies, accuracies = [4, 5, 7], [6, 8]
    if mistake == "the cross-entropies are in bits: a factor of 1/ln 2":
        numbers[cross_entropies] /= np.log(2)
    if mistake == "a fraction is printed with %":
        numbers[accuracies] /= 100
    if mistake == "the percentage of errors is printed":
        numbers[accuracies] = 1 - numbers[accuracies]
    return numbers


# --- Is it the program's run? ---------------------------------------------------------------------


@pytest.fixture(scope="session")
def in_plain_numpy(finished_run):
    """What comes out with no mistake."""
    parts = divide(finished_run.own_files)
    models = train(parts)
    return {"parts": parts, "models": models, "numbers": choose(parts, models)}


@pytest.fixture(scope="session")
def by_mistake(finished_run, in_plain_numpy):
    """The numbers that each mistake gives."""
    parts, models = in_plain_numpy["parts"], in_plain_numpy["models"]
    numbers = {}
    for mistake in DATA_MISTAKES:
        wrong_parts = divide(finished_run.own_files, mistake)
        numbers[mistake] = choose(wrong_parts, train(wrong_parts))
    for mistake in TRAINING_MISTAKES:
        numbers[mistake] = choose(parts, train(parts, mistake))
    for mistake in CHOICE_MISTAKES:
        numbers[mistake] = choose(parts, models, mistake)
    return numbers


def agree(numbers, others):
    """To the last printed digit, but for rounding."""
    return np.allclose(numbers, others, rtol=0, atol=1e-4)


def owners(part, cross_entropy, in_plain_numpy):
    """The points, in words, whose model has this cross-entropy on a part."""
    return [
        "batch size {}, learning rate {}, alpha {}, epochs {}".format(*point)
        for point, (W, b) in in_plain_numpy["models"].items()
        if agree(metrics(W, b, *in_plain_numpy["parts"][part])[0], cross_entropy)
    ]


def test_the_run_is_that_of_the_assignment(finished_run, in_plain_numpy, request):
    printed = PRINTED.search(finished_run.stdout)
    assert printed, f"the numbers of the assignment are not found in\n{finished_run.stdout}"
    ours = np.array([float(text) for text in printed.groups()])
    ours[[6, 8]] /= 100  # they are percentages
    right = in_plain_numpy["numbers"]
    if agree(ours, right):
        return
    wrong = request.getfixturevalue("by_mistake")
    lines = [
        f"{name} is {one:.6g}, not {other:.6g}"
        for name, one, other in zip(NUMBERS, ours, right)
        if not agree(one, other)
    ]
    lines += [f"all is as if {mistake}" for mistake in wrong if agree(ours, wrong[mistake])]
    for part, at in (("validation", 5), ("test", 7)):
        if not agree(ours[at], right[at]):
            points = owners(part, ours[at], in_plain_numpy)
            lines += [f"this {part} cross-entropy is that of the point {p}" for p in points]
    pytest.fail("\n".join(lines), pytrace=False)


def test_that_run_would_show_each_mistake(in_plain_numpy, by_mistake):
    unseen = [name for name in by_mistake if agree(by_mistake[name], in_plain_numpy["numbers"])]
    assert unseen == []
    alike = [
        pair
        for pair in itertools.combinations(by_mistake, 2)
        if agree(by_mistake[pair[0]], by_mistake[pair[1]])
    ]
    assert alike == [], "mistakes that give the same numbers"


def test_the_winner_of_that_run_is_in_the_middle_of_every_axis(in_plain_numpy):
    """So that no slip of an index goes unseen."""
    *winner, epochs = in_plain_numpy["numbers"][:4]
    indices = [axis.index(value) for axis, value in zip(GRID, winner)] + [int(epochs) - 1]
    assert len(set(indices)) == 4, "two indices are equal"
    for index, length in zip(indices, [*map(len, GRID[:3]), GRID.epochs]):
        assert 0 < index < length - 1, "an index is the first or the last"
