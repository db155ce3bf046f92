-- Storage of extensions. A write is one call of a function here: it locks the install's usage row, compares revisions and limits with what is
-- there then, writes, and keeps the sums, in one round trip of one statement; nobody holds the lock while the server waits for a client.
-- The functions run with the rights of their caller: row-level security and grants hold in them as in any other statement.
-- Each statement of a volatile function sees what was committed before it began, so what follows the lock sees what the lock waited for.

-- Text that an extension keeps beside a value, exactly as given; it was never written before.
alter table ext_storage_record drop column metadata;
alter table ext_storage_record
    add column metadata text,
    add constraint ext_storage_record_metadata_check check (metadata_size_bytes = coalesce(octet_length(metadata), 0)),
    -- Of the usage row, which a write has locked anyway: so no write locks the install, and none can meet a purge of it crosswise.
    drop constraint ext_storage_record_tenant_id_install_id_fkey,
    add constraint ext_storage_record_usage_fkey foreign key (tenant_id, install_id)
        references ext_storage_usage (tenant_id, install_id) on delete cascade;
create index ext_storage_record_expiry on ext_storage_record (tenant_id, install_id, ttl_expires_at) where ttl_expires_at is not null;

-- Adds to the sums of an install, whose usage row the caller has locked. A namespace without keys is not in namespace_keys.
create function extrunner_storage_count(of_tenant text, of_install uuid, of_namespace text, more_keys integer, more_bytes bigint)
returns void
language sql set search_path = pg_catalog, pg_temp
as $$
    update public.ext_storage_usage u
       set bytes_used = u.bytes_used + more_bytes,
           keys_count = u.keys_count + more_keys,
           namespaces_count = u.namespaces_count + (n.after > 0)::integer - (n.before > 0)::integer,
           namespace_keys = case when n.after > 0 then u.namespace_keys || jsonb_build_object(of_namespace, n.after)
                                 else u.namespace_keys - of_namespace end
      from (select k.before, k.before + more_keys as after
              from (select coalesce((o.namespace_keys ->> of_namespace)::integer, 0) as before
                      from public.ext_storage_usage o
                     where o.tenant_id = of_tenant and o.install_id = of_install) k) n
     where u.tenant_id = of_tenant and u.install_id = of_install
$$;

-- Deletes expired records of an install, whose usage row the caller has locked: those that expired first, `most` at most. Returns how many.
create function extrunner_storage_clear(of_tenant text, of_install uuid, most integer) returns integer
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    gone record;
    cleared integer := 0;
begin
    for gone in
        with expired as (
            select r.namespace, r.key from public.ext_storage_record r
             where r.tenant_id = of_tenant and r.install_id = of_install and r.ttl_expires_at <= now()
             order by r.ttl_expires_at limit most),
        deleted as (
            delete from public.ext_storage_record r using expired e
             where r.tenant_id = of_tenant and r.install_id = of_install and r.namespace = e.namespace and r.key = e.key
            returning r.namespace, r.value_size_bytes + r.metadata_size_bytes as bytes)
        select d.namespace, count(*)::integer as keys, sum(d.bytes)::bigint as bytes from deleted d group by d.namespace
    loop
        perform public.extrunner_storage_count(of_tenant, of_install, gone.namespace, -gone.keys, -gone.bytes);
        cleared := cleared + gone.keys;
    end loop;
    return cleared;
end
$$;

-- Writes records of one namespace, all or none. `expected`: null writes in any case, 0 only what is not there, another number only over the
-- record that has this revision; what expired is not there. Answers the new revisions in the order of the keys, or why nothing was written:
-- 'gone' (no such install), 'conflict', 'namespaces', 'keys' or 'bytes' (what would be more than allowed; shrinking always passes).
-- What expired holds room only until somebody needs it: before a refusal the install's expired records go, a thousand at most.
create function extrunner_storage_put(
    of_tenant text, of_install uuid, of_namespace text, new_keys text[], new_values bytea[], new_metadata text[], ttls integer[],
    expected bigint, most_namespaces integer, most_keys integer, most_bytes bigint, out refusal text, out revisions bigint[])
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    used record;
    added integer;
    grown bigint;
    is_expected boolean;
    held integer;
begin
    for attempt in 1 .. 2 loop
        select u.bytes_used, u.namespaces_count, u.namespace_keys into used
          from public.ext_storage_usage u where u.tenant_id = of_tenant and u.install_id = of_install for update;
        if not found then
            insert into public.ext_storage_usage (tenant_id, install_id)
            select i.tenant_id, i.id from public.tenant_extension_install i where i.tenant_id = of_tenant and i.id = of_install
            on conflict do nothing;
            select u.bytes_used, u.namespaces_count, u.namespace_keys into used
              from public.ext_storage_usage u where u.tenant_id = of_tenant and u.install_id = of_install for update;
            if not found then
                refusal := 'gone';
                return;
            end if;
        end if;
        select count(*) filter (where r.key is null),
               sum(octet_length(n.value) + coalesce(octet_length(n.metadata), 0) - coalesce(r.value_size_bytes + r.metadata_size_bytes, 0)),
               bool_and(expected is null or expected = l.revision),
               array_agg(l.revision + 1 order by n.position)
          into added, grown, is_expected, revisions
          from unnest(new_keys, new_values, new_metadata) with ordinality n (key, value, metadata, position)
          left join public.ext_storage_record r
            on r.tenant_id = of_tenant and r.install_id = of_install and r.namespace = of_namespace and r.key = n.key
         cross join lateral (
            select case when r.ttl_expires_at is null or r.ttl_expires_at > now() then coalesce(r.revision, 0) else 0 end) l (revision);
        held := coalesce((used.namespace_keys ->> of_namespace)::integer, 0);
        refusal := case
            when not is_expected then 'conflict'
            when added > 0 and held = 0 and used.namespaces_count >= most_namespaces then 'namespaces'
            when added > 0 and held + added > most_keys then 'keys'
            when grown > 0 and used.bytes_used + grown > most_bytes then 'bytes'
        end;
        exit when refusal is null;
        if refusal = 'conflict' or attempt = 2 or public.extrunner_storage_clear(of_tenant, of_install, 1000) = 0 then
            revisions := null;
            return;
        end if;
    end loop;
    insert into public.ext_storage_record as r (
        tenant_id, install_id, namespace, key, revision, value, value_size_bytes, metadata, metadata_size_bytes, ttl_expires_at)
    select of_tenant, of_install, of_namespace, n.key, n.revision, n.value, octet_length(n.value), n.metadata,
           coalesce(octet_length(n.metadata), 0), now() + make_interval(secs => n.ttl)
      from unnest(new_keys, new_values, new_metadata, ttls, revisions) n (key, value, metadata, ttl, revision)
    on conflict (tenant_id, install_id, namespace, key) do update
       set revision = excluded.revision, value = excluded.value, value_size_bytes = excluded.value_size_bytes,
           metadata = excluded.metadata, metadata_size_bytes = excluded.metadata_size_bytes, ttl_expires_at = excluded.ttl_expires_at,
           created_at = case when excluded.revision = 1 then excluded.created_at else r.created_at end, updated_at = now();
    perform public.extrunner_storage_count(of_tenant, of_install, of_namespace, added, grown);
end
$$;

-- Deletes a record; with `expected` only the one that has this revision. Answers null, or 'missing' or 'conflict'.
create function extrunner_storage_delete(of_tenant text, of_install uuid, of_namespace text, old_key text, expected bigint) returns text
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    old record;
begin
    perform from public.ext_storage_usage u where u.tenant_id = of_tenant and u.install_id = of_install for update;
    select r.revision, r.value_size_bytes + r.metadata_size_bytes as bytes into old
      from public.ext_storage_record r
     where r.tenant_id = of_tenant and r.install_id = of_install and r.namespace = of_namespace and r.key = old_key
       and (r.ttl_expires_at is null or r.ttl_expires_at > now());
    if not found then
        return 'missing';
    end if;
    if expected is not null and expected <> old.revision then
        return 'conflict';
    end if;
    delete from public.ext_storage_record r
     where r.tenant_id = of_tenant and r.install_id = of_install and r.namespace = of_namespace and r.key = old_key;
    perform public.extrunner_storage_count(of_tenant, of_install, of_namespace, -1, -old.bytes);
    return null;
end
$$;

revoke all on function extrunner_storage_count, extrunner_storage_clear, extrunner_storage_put, extrunner_storage_delete from public;
grant execute on function extrunner_storage_count, extrunner_storage_clear to ext_runner, ext_maintenance;
grant execute on function extrunner_storage_put, extrunner_storage_delete to ext_runner;
