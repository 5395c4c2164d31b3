"""The answer is a list that holds itself.

Must: no task passes, and nothing is touched.
Says: deep cannot cross
"""


def softmax(x, *, temperature=1.0):
    answer = []
    answer.append(answer)
    return answer


entropy = softmax
