"""Makes the bucket in which MLflow keeps its artifacts, unless it is there: bucket.py NAME."""

from __future__ import annotations

import os
import sys

import boto3
from botocore.exceptions import ClientError


def main(name: str) -> None:
    store = boto3.client("s3", endpoint_url=os.environ["MLFLOW_S3_ENDPOINT_URL"])
    try:
        store.head_bucket(Bucket=name)
    except ClientError as error:
        if error.response["Error"]["Code"] != "404":
            raise
        store.create_bucket(Bucket=name)


if __name__ == "__main__":
    main(sys.argv[1])
