-- Runs once, as the superuser, on an empty PostgreSQL: two roles and a database.
-- `leasehold_owner` owns the tables and is used by `manage.py migrate` alone.
-- `leasehold_app` is the application's: it owns nothing, so it cannot change or drop its own history.
-- The passwords come from files, never from this script or the environment.
\set owner_password `cat "${SECRETS_FOLDER:-/run/secrets}/owner_password"`
\set app_password `cat "${SECRETS_FOLDER:-/run/secrets}/app_password"`

-- a statement that fails must not leave a password in the server's log
SET log_min_error_statement = 'panic';
SET log_statement = 'none';
CREATE ROLE leasehold_owner LOGIN PASSWORD :'owner_password';
CREATE ROLE leasehold_app LOGIN PASSWORD :'app_password';
CREATE DATABASE leasehold OWNER leasehold_owner;
REVOKE ALL ON DATABASE leasehold FROM PUBLIC;
GRANT CONNECT ON DATABASE leasehold TO leasehold_app;
\connect leasehold
ALTER SCHEMA public OWNER TO leasehold_owner;
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
