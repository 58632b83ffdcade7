package controller

import (
	"testing"

	"heliotrope"
	"heliotrope/controller/world"
	"heliotrope/migration"
)

// Both hosts of a move learn whose the VM is, at each step.
func TestOrdersTellTheTenant(t *testing.T) {
	v := &world.View{Topology: heliotrope.Topology{
		Hosts: map[heliotrope.HostID]heliotrope.Host{"a-1": {Site: "a"}, "b-1": {Site: "b"}},
		VMs:   map[heliotrope.VMID]heliotrope.VM{"web": {Image: "guest", Host: "a-1", Tenant: "red"}, "db": {Image: "guest", Host: "a-1"}}}}
	r := &moveRun{driver: &driver{}}
	for vm, tenant := range map[heliotrope.VMID]heliotrope.TenantID{"web": "red", "db": ""} {
		m := migration.Move{ID: "m-1", VM: vm, From: "a-1", To: "b-1", Epoch: 3}
		for step, role := range map[migration.Step]migration.Role{migration.StepBegin: migration.Source, migration.StepCopy: migration.Source, migration.StepPrepare: migration.Destination} {
			o := r.order(v, m, role, step)
			if o.Tenant != tenant || o.VM != vm {
				t.Errorf("the order to %s says that %s is of %q", step, o.VM, o.Tenant)
			}
			if copies := step == migration.StepCopy; copies != (o.Together != nil) || copies && o.Together.Site != "b" {
				t.Errorf("the order to %s says that it goes together with %+v", step, o.Together)
			}
		}
	}
}
