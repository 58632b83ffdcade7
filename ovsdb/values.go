package ovsdb

import (
	"encoding/hex"
	"maps"
	"slices"

	libovsdb "github.com/ovn-kubernetes/libovsdb/ovsdb"
)

// OVSDB's values as RFC 7047 writes them.

func uuidIs(uuid string) libovsdb.Condition {
	return libovsdb.NewCondition("_uuid", libovsdb.ConditionEqual, libovsdb.UUID{GoUUID: uuid})
}

func uuidSet(uuids ...string) libovsdb.OvsSet {
	var set libovsdb.OvsSet
	for _, u := range uuids {
		set.GoSet = append(set.GoSet, libovsdb.UUID{GoUUID: u})
	}
	return set
}

func stringSet(values []string) libovsdb.OvsSet {
	var set libovsdb.OvsSet
	for _, v := range values {
		set.GoSet = append(set.GoSet, v)
	}
	return set
}

func mapOf(values map[string]string) libovsdb.OvsMap {
	m := libovsdb.OvsMap{GoMap: map[any]any{}}
	for k, v := range values {
		m.GoMap[k] = v
	}
	return m
}

// setKeys returns the mutations that give keys of a map column the given values and take
// the further keys away, where they have no value. Other keys stay as they are.
func setKeys(column string, values map[string]string, further ...string) []libovsdb.Mutation {
	keys := slices.Compact(slices.Sorted(slices.Values(slices.AppendSeq(slices.Clone(further), maps.Keys(values)))))
	mutations := []libovsdb.Mutation{*libovsdb.NewMutation(column, libovsdb.MutateOperationDelete, stringSet(keys))}
	if len(values) > 0 {
		mutations = append(mutations, *libovsdb.NewMutation(column, libovsdb.MutateOperationInsert, mapOf(values)))
	}
	return mutations
}

// named makes part of a named UUID of a port's name; those allow letters, digits and _ only.
func named(name string) string { return hex.EncodeToString([]byte(name)) }
