#!/usr/bin/env bash
# Writes infra/compose/.env with passwords made by chance, once; what is there is left as it is.
#
#   infra/compose/environment.sh
set -euo pipefail

file=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/.env
if [[ -e $file ]]; then
    echo "environment: $file is there already"
    exit 0
fi
random() { head -c 24 /dev/urandom | od -An -tx1 | tr -d ' \n'; }

umask 077
cat >"$file" <<END
POSTGRES_PASSWORD=$(random)
S3_ACCESS_KEY=csr
S3_SECRET_KEY=$(random)
MLFLOW_ADMIN_PASSWORD=$(random)
MLFLOW_SECRET_KEY=$(random)
MLFLOW_WEBHOOK_KEY=$(head -c 32 /dev/urandom | base64 | tr '+/' '-_')
WEBHOOK_SECRET=$(random)
ALERTS_TOKEN=$(random)
GRAFANA_PASSWORD=$(random)
GITHUB_REPOSITORY=owner/name
GITHUB_TOKEN=
CSR_READER_KEY=
CSR_METRICS_KEY=
END
echo "environment: made $file"
