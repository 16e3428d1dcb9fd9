package cache

import (
	"bytes"
	"crypto/sha1"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tidwall/redcon"

	"github.com/seed-780dceda/thicket/functions/stale"
)

// command is one that the server knows. Its arguments count its name.
type command struct {
	min, max int // max 0 for no bound but the command's length
	do       func(c *conn, out []byte, args [][]byte) []byte
}

// maxSubscriptions is the most that a client has at a time.
const maxSubscriptions = 16

// sha returns what EVALSHA calls a script.
func sha(script string) string {
	sum := sha1.Sum([]byte(script))
	return hex.EncodeToString(sum[:])
}

var writeSHA, releaseSHA = sha(stale.WriteScript), sha(stale.ReleaseScript)

var commands = map[string]command{
	"AUTH": {2, 3, func(c *conn, out []byte, args [][]byte) []byte {
		user := []byte("default")
		if len(args) == 3 {
			user = args[1]
		}
		if !c.authenticate(user, args[len(args)-1]) {
			return redcon.AppendError(out, "WRONGPASS invalid username-password pair or user is disabled.")
		}
		return redcon.AppendOK(out)
	}},
	"HELLO": {1, 8, hello},
	"QUIT": {1, 1, func(c *conn, out []byte, _ [][]byte) []byte {
		c.quit = true
		return redcon.AppendOK(out)
	}},
	"PING": {1, 2, func(c *conn, out []byte, args [][]byte) []byte {
		switch {
		case len(c.subs) > 0:
			out = redcon.AppendBulkString(redcon.AppendArray(out, 2), "pong")
			return redcon.AppendBulkString(out, string(bytes.Join(args[1:], nil)))
		case len(args) == 2:
			return redcon.AppendBulk(out, args[1])
		}
		return redcon.AppendString(out, "PONG")
	}},
	"SELECT": {2, 2, func(_ *conn, out []byte, args [][]byte) []byte {
		if string(args[1]) != "0" {
			return redcon.AppendError(out, "ERR DB index is out of range: this server has only 0")
		}
		return redcon.AppendOK(out)
	}},
	"CLIENT":  {2, 0, func(_ *conn, out []byte, _ [][]byte) []byte { return redcon.AppendOK(out) }},
	"COMMAND": {1, 0, func(_ *conn, out []byte, _ [][]byte) []byte { return redcon.AppendArray(out, 0) }},
	"INFO": {1, 0, func(c *conn, out []byte, _ [][]byte) []byte {
		return redcon.AppendBulkString(out, c.info())
	}},

	"GET": {2, 2, locked(func(s *store, out []byte, args [][]byte) []byte {
		return appendValue(out, s.get(args[1]))
	})},
	"MGET": {2, 64, locked(func(s *store, out []byte, args [][]byte) []byte {
		out = redcon.AppendArray(out, len(args)-1)
		for _, key := range args[1:] {
			out = appendValue(out, s.get(key))
		}
		return out
	})},
	"GETRANGE": {4, 4, locked(getRange)},
	"STRLEN": {2, 2, locked(func(s *store, out []byte, args [][]byte) []byte {
		n := 0
		if v := s.get(args[1]); v != nil {
			n = len(v.bytes)
		}
		return redcon.AppendInt(out, int64(n))
	})},
	"SET":    {3, 6, locked(set)},
	"DEL":    {2, 0, locked(del)},
	"UNLINK": {2, 0, locked(del)},
	"EXISTS": {2, 0, locked(func(s *store, out []byte, args [][]byte) []byte {
		n := 0
		for _, key := range args[1:] {
			if s.get(key) != nil {
				n++
			}
		}
		return redcon.AppendInt(out, int64(n))
	})},
	"PTTL": {2, 2, locked(func(s *store, out []byte, args [][]byte) []byte {
		return redcon.AppendInt(out, left(s.get(args[1])))
	})},
	"TTL": {2, 2, locked(func(s *store, out []byte, args [][]byte) []byte {
		ms := left(s.get(args[1]))
		if ms > 0 {
			ms = (ms + 500) / 1000
		}
		return redcon.AppendInt(out, ms)
	})},
	"PEXPIRE": {3, 3, locked(expire(time.Millisecond))},
	"EXPIRE":  {3, 3, locked(expire(time.Second))},
	"INCR": {2, 2, locked(func(s *store, out []byte, args [][]byte) []byte {
		var n int64
		v := s.get(args[1])
		var life time.Duration
		if v != nil {
			var err error
			if n, err = strconv.ParseInt(string(v.bytes), 10, 64); err != nil {
				return redcon.AppendError(out, "ERR value is not an integer or out of range")
			}
			life = max(time.Duration(left(v))*time.Millisecond, 0)
		}
		s.set(args[1], strconv.AppendInt(nil, n+1, 10), life)
		return redcon.AppendInt(out, n+1)
	})},
	"DBSIZE": {1, 1, locked(func(s *store, out []byte, _ [][]byte) []byte {
		return redcon.AppendInt(out, int64(len(s.byKey)))
	})},
	"KEYS": {2, 2, locked(keys)},

	"EVAL": {3, 0, func(c *conn, out []byte, args [][]byte) []byte { return c.eval(out, sha(string(args[1])), args) }},
	"EVALSHA": {3, 0, func(c *conn, out []byte, args [][]byte) []byte {
		return c.eval(out, strings.ToLower(string(args[1])), args)
	}},

	"PUBLISH":     {3, 3, publish},
	"SUBSCRIBE":   {2, 1 + maxSubscriptions, subscribe},
	"UNSUBSCRIBE": {1, 1 + maxSubscriptions, unsubscribe},
}

// locked makes a command of what is done with the store's lock held.
func locked(f func(*store, []byte, [][]byte) []byte) func(*conn, []byte, [][]byte) []byte {
	return func(c *conn, out []byte, args [][]byte) []byte {
		c.store.mu.Lock()
		defer c.store.mu.Unlock()
		return f(c.store, out, args)
	}
}

func appendValue(out []byte, v *value) []byte {
	if v == nil {
		return redcon.AppendNull(out)
	}
	return redcon.AppendBulk(out, v.bytes)
}

// hello speaks the second version of the protocol only; clients that ask for the
// third take that for an answer.
func hello(c *conn, out []byte, args [][]byte) []byte {
	rest := args[1:]
	if len(rest) > 0 {
		if string(rest[0]) != "2" {
			return redcon.AppendError(out, "NOPROTO unsupported protocol version")
		}
		rest = rest[1:]
	}
	for len(rest) > 0 {
		switch option := strings.ToUpper(string(rest[0])); {
		case option == "AUTH" && len(rest) >= 3:
			if !c.authenticate(rest[1], rest[2]) {
				return redcon.AppendError(out, "WRONGPASS invalid username-password pair or user is disabled.")
			}
			rest = rest[3:]
		case option == "SETNAME" && len(rest) >= 2:
			rest = rest[2:]
		default:
			return redcon.AppendError(out, "ERR syntax error")
		}
	}
	if !c.known {
		return redcon.AppendError(out, "NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO <proto> AUTH <user> <pass> option can be used to authenticate the client")
	}
	out = redcon.AppendArray(out, 6)
	out = redcon.AppendBulkString(redcon.AppendBulkString(out, "server"), "thicket")
	out = redcon.AppendInt(redcon.AppendBulkString(out, "proto"), 2)
	return redcon.AppendBulkString(redcon.AppendBulkString(out, "mode"), "standalone")
}

// info says what there is, in the form of Redis.
func (c *conn) info() string {
	c.store.mu.Lock()
	keys, size := len(c.store.byKey), c.store.size
	c.store.mu.Unlock()
	c.Server.mu.Lock()
	clients := len(c.conns)
	c.Server.mu.Unlock()
	return fmt.Sprintf("# Server\r\nserver_name:thicket\r\nredis_mode:standalone\r\n# Clients\r\nconnected_clients:%d\r\n"+
		"# Memory\r\nused_memory:%d\r\nmaxmemory:%d\r\nmaxmemory_policy:allkeys-lru\r\n# Keyspace\r\ndb0:keys=%d\r\n", clients, size, c.store.limit, keys)
}

// set obeys SET key value [NX|XX] [EX s|PX ms].
func set(s *store, out []byte, args [][]byte) []byte {
	var (
		life   time.Duration
		nx, xx bool
	)
	for rest := args[3:]; len(rest) > 0; {
		switch option := strings.ToUpper(string(rest[0])); {
		case option == "NX" && !xx:
			nx, rest = true, rest[1:]
		case option == "XX" && !nx:
			xx, rest = true, rest[1:]
		case (option == "EX" || option == "PX") && len(rest) > 1 && life == 0:
			unit := time.Second
			if option == "PX" {
				unit = time.Millisecond
			}
			var ok bool
			if life, ok = duration(rest[1], unit); !ok || life <= 0 {
				return redcon.AppendError(out, "ERR invalid expire time in 'set' command")
			}
			rest = rest[2:]
		default:
			return redcon.AppendError(out, "ERR syntax error")
		}
	}
	if there := s.get(args[1]) != nil; there && nx || !there && xx {
		return redcon.AppendNull(out)
	}
	s.set(args[1], args[2], life)
	return redcon.AppendOK(out)
}

// duration parses a number of units that fits.
func duration(b []byte, unit time.Duration) (time.Duration, bool) {
	n, err := strconv.ParseInt(string(b), 10, 64)
	if most := int64(1<<62) / int64(unit); err != nil || n > most || n < -most {
		return 0, false
	}
	return time.Duration(n) * unit, true
}

func del(s *store, out []byte, args [][]byte) []byte {
	n := 0
	for _, key := range args[1:] {
		if s.del(key) {
			n++
		}
	}
	return redcon.AppendInt(out, int64(n))
}

func expire(unit time.Duration) func(*store, []byte, [][]byte) []byte {
	return func(s *store, out []byte, args [][]byte) []byte {
		life, ok := duration(args[2], unit)
		if !ok {
			return redcon.AppendError(out, "ERR value is not an integer or out of range")
		}
		v := s.get(args[1])
		if v == nil {
			return redcon.AppendInt(out, 0)
		}
		if life <= 0 {
			s.del(args[1])
		} else {
			v.end = time.Now().Add(life)
		}
		return redcon.AppendInt(out, 1)
	}
}

// getRange obeys GETRANGE key from to, both inclusive, from the end if negative.
func getRange(s *store, out []byte, args [][]byte) []byte {
	from, err1 := strconv.Atoi(string(args[2]))
	to, err2 := strconv.Atoi(string(args[3]))
	if err1 != nil || err2 != nil {
		return redcon.AppendError(out, "ERR value is not an integer or out of range")
	}
	var b []byte
	if v := s.get(args[1]); v != nil {
		b = v.bytes
	}
	if from < 0 {
		from = max(from+len(b), 0)
	}
	if to < 0 {
		to += len(b)
	}
	if to = min(to, len(b)-1); from > to {
		return redcon.AppendBulk(out, nil)
	}
	return redcon.AppendBulk(out, b[from:to+1])
}

// keys obeys KEYS prefix*, for people who look; other patterns match nothing.
func keys(s *store, out []byte, args [][]byte) []byte {
	prefix, ok := strings.CutSuffix(string(args[1]), "*")
	now := time.Now()
	var found []string
	for e := s.used.Front(); e != nil && ok && len(found) < 1000; e = e.Next() {
		if v := e.Value.(*value); strings.HasPrefix(v.key, prefix) && !v.ended(now) {
			found = append(found, v.key)
		}
	}
	out = redcon.AppendArray(out, len(found))
	for _, key := range found {
		out = redcon.AppendBulkString(out, key)
	}
	return out
}

// eval obeys EVAL and EVALSHA for the scripts of functions/stale.
func (c *conn) eval(out []byte, sum string, args [][]byte) []byte {
	n, err := strconv.Atoi(string(args[2]))
	if err != nil || n < 0 || n > len(args)-3 {
		return redcon.AppendError(out, "ERR Number of keys can't be greater than number of args")
	}
	keys, argv := args[3:3+n], args[3+n:]
	c.store.mu.Lock()
	defer c.store.mu.Unlock()
	switch {
	case sum == writeSHA && len(keys) == 2 && len(argv) == 4:
		return c.store.write(out, keys, argv)
	case sum == releaseSHA && len(keys) == 1 && len(argv) == 1:
		v := c.store.get(keys[0])
		if v == nil || !bytes.Equal(v.bytes, argv[0]) {
			return redcon.AppendInt(out, 0)
		}
		return del(c.store, out, [][]byte{nil, keys[0]})
	case strings.EqualFold(string(args[0]), "EVALSHA"):
		return redcon.AppendError(out, "NOSCRIPT No matching script. Please use EVAL.")
	}
	return redcon.AppendError(out, "ERR this is Thicket's cache, which runs no Lua: run a Redis for scripts")
}

// write does what [stale.WriteScript] does. The caller holds mu.
func (s *store) write(out []byte, keys, argv [][]byte) []byte {
	life, okLife := duration(argv[1], time.Millisecond)
	age, err := strconv.ParseInt(string(argv[2]), 10, 64)
	if !okLife || life <= 0 || err != nil {
		return redcon.AppendError(out, "ERR value is not an integer or out of range")
	}
	var gen []byte
	if v := s.get(keys[1]); v != nil {
		gen = v.bytes
	}
	if !bytes.Equal(gen, argv[3]) {
		return redcon.AppendInt(out, 0)
	}
	if v := s.get(keys[0]); v != nil && !v.end.IsZero() && len(v.bytes) >= 28 && len(argv[0]) > 0 && v.bytes[0] == argv[0][0] {
		was, err1 := strconv.ParseInt(string(v.bytes[2:15]), 10, 64)
		had, err2 := strconv.ParseInt(string(v.bytes[15:28]), 10, 64)
		if rest := left(v); err1 == nil && err2 == nil && rest <= had && was+had-rest < age {
			return redcon.AppendInt(out, 0)
		}
	}
	s.set(keys[0], argv[0], life)
	return redcon.AppendInt(out, 1)
}

// publish obeys PUBLISH. A subscriber that doesn't take the message at once loses
// its connection, so that it knows.
func publish(c *conn, out []byte, args [][]byte) []byte {
	message := redcon.AppendBulkString(redcon.AppendArray(nil, 3), "message")
	message = redcon.AppendBulk(redcon.AppendBulk(message, args[1]), args[2])
	n := 0
	for _, to := range c.hub.of(string(args[1])) {
		if err := to.push(message); err != nil {
			_ = to.nc.Close()
			continue
		}
		n++
	}
	return redcon.AppendInt(out, int64(n))
}

// push sends a message that was not asked for.
func (c *conn) push(b []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	_ = c.nc.SetWriteDeadline(time.Now().Add(10 * time.Millisecond)) // fails with the connection
	_, err := c.nc.Write(b)
	return err
}

func subscribe(c *conn, out []byte, args [][]byte) []byte {
	for _, name := range args[1:] {
		channel := string(name)
		if !slices.Contains(c.subs, channel) {
			if len(c.subs) >= maxSubscriptions {
				return redcon.AppendError(out, fmt.Sprintf("ERR at most %d subscriptions", maxSubscriptions))
			}
			c.subs = append(c.subs, channel)
		}
		out = redcon.AppendBulkString(redcon.AppendBulkString(redcon.AppendArray(out, 3), "subscribe"), channel)
		out = redcon.AppendInt(out, int64(len(c.subs)))
	}
	// The client hears that it has subscribed before it hears a message.
	if err := c.write(out); err != nil {
		c.quit = true
		return nil
	}
	for _, channel := range c.subs {
		c.hub.join(c, channel)
	}
	return out[:0]
}

func unsubscribe(c *conn, out []byte, args [][]byte) []byte {
	channels := slices.Clone(c.subs)
	if len(args) > 1 {
		channels = channels[:0]
		for _, name := range args[1:] {
			channels = append(channels, string(name))
		}
	}
	if len(channels) == 0 {
		out = redcon.AppendNull(redcon.AppendBulkString(redcon.AppendArray(out, 3), "unsubscribe"))
		return redcon.AppendInt(out, 0)
	}
	c.hub.leave(c, channels...)
	for _, channel := range channels {
		c.subs = slices.DeleteFunc(c.subs, func(s string) bool { return s == channel })
		out = redcon.AppendBulkString(redcon.AppendBulkString(redcon.AppendArray(out, 3), "unsubscribe"), channel)
		out = redcon.AppendInt(out, int64(len(c.subs)))
	}
	return out
}
