"""Make the bucket of the artifacts, if it is not there; waits for the object store."""

import os
import sys
import time

import boto3
from botocore.exceptions import BotoCoreError, ClientError

store = boto3.client("s3", endpoint_url=os.environ["MLFLOW_S3_ENDPOINT_URL"])
for _ in range(60):
    try:
        store.create_bucket(Bucket=sys.argv[1])
        break
    except ClientError as error:
        if error.response["Error"]["Code"] in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
            break
        sys.exit(f"The object store refuses the bucket {sys.argv[1]}: {error.response['Error']['Code']}")
    except BotoCoreError:
        time.sleep(1)
else:
    sys.exit("The object store does not answer.")
