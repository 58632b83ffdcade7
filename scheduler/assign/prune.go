package assign

// Prune takes back moves that add too little: first single units, then those that moved
// from one site to another together.
func (s *State) Prune(least float64) {
	least = max(least, 1e-9)
	for changed := true; changed; {
		changed = false
		for u := range s.At {
			if s.displaced(u) && s.Fits(u, s.f.Home[u]) && s.Gain(u, s.f.Home[u]) < least {
				s.Move(u, s.f.Home[u])
				changed = true
			}
		}
		changed = s.pruneGroups(least) || changed
	}
}

// displaced says whether a unit is not at its home and could be.
func (s *State) displaced(u int) bool {
	home := s.f.Home[u]
	return home != None && s.At[u] != home && s.f.Linear[u*s.f.Sites+home] < Never/2
}

func (s *State) pruneGroups(least float64) bool {
	mark := make([]int, len(s.At)) // the group that a unit is in, by one more than its first unit
	changed := false
	for first := range s.At {
		if mark[first] > 0 || !s.displaced(first) {
			continue
		}
		mark[first] = first + 1
		group := []int{first}
		for i := 0; i < len(group); i++ {
			for _, e := range s.f.Edges[group[i]] {
				if mark[e.To] == 0 && s.displaced(e.To) && s.At[e.To] == s.At[first] && s.f.Home[e.To] == s.f.Home[first] {
					mark[e.To] = first + 1
					group = append(group, e.To)
				}
			}
		}
		home := s.f.Home[first]
		if len(group) > 1 && s.groupMay(group, home) && s.groupGain(group, mark, first+1, home) < least {
			for _, u := range group {
				s.Move(u, home)
			}
			changed = true
		}
	}
	return changed
}

func (s *State) groupMay(group []int, k int) bool {
	fits, _, _ := s.groupFits(group, k)
	return fits && s.permitsGroup(group, k)
}
