"""`python -m kd_mlflow` is `kd-mlflow`."""

from kd_mlflow.cli import main

if __name__ == "__main__":
    main()
