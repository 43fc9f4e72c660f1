#!/bin/sh
# Gives Leasehold its two accounts in an OpenBao that is initialised and unsealed: policies, and AppRole log-ins whose
# secret ids come from files. Needs BAO_ADDR and the token of an administrator in BAO_TOKEN. Safe to run again.
set -eu

policies=${POLICIES_FOLDER:-/etc/openbao/policies}
secrets=${SECRETS_FOLDER:-/run/secrets}

bao auth list -format=json | grep -q '"approle/"' || bao auth enable approle

for name in observe respond; do
  bao policy write "leasehold-$name" "$policies/leasehold-$name.hcl"
  # periodic: the token lives as long as it is renewed, and for an hour after its process has gone
  bao write "auth/approle/role/leasehold-$name" \
    token_policies="leasehold-$name" token_period=1h secret_id_num_uses=0 secret_id_ttl=0
  bao write "auth/approle/role/leasehold-$name/role-id" role_id="leasehold-$name"
  # the same secret id a second time is an error, and no harm
  bao write -field=secret_id_accessor "auth/approle/role/leasehold-$name/custom-secret-id" \
    secret_id=@"$secrets/vault_${name}_secret_id" >/dev/null 2>&1 ||
    bao write -field=secret_id_accessor "auth/approle/role/leasehold-$name/secret-id/lookup" \
      secret_id=@"$secrets/vault_${name}_secret_id" >/dev/null
  echo "leasehold-$name can log in with AppRole"
done
