"""The trivial work that everybody starts."""


def trivial():
    print("done")


if __name__ == "__main__":
    trivial()
