#!/bin/bash
# Run once by the PostgreSQL image on an empty volume: a role and a database for each server.
set -eu
psql --quiet --set ON_ERROR_STOP=1 --set mlflow="$MLFLOW_DB_PASSWORD" --set prefect="$PREFECT_DB_PASSWORD" \
    --username "${POSTGRES_USER:-postgres}" --dbname "${POSTGRES_DB:-postgres}" <<'SQL'
CREATE ROLE mlflow LOGIN PASSWORD :'mlflow';
CREATE DATABASE mlflow OWNER mlflow;
CREATE ROLE prefect LOGIN PASSWORD :'prefect';
CREATE DATABASE prefect OWNER prefect;
SQL
