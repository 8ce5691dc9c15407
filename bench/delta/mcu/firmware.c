/* A small gateway firmware for the delta corpus: Lua, mbed TLS and lwIP on a Cortex-M4.
 * RELEASE 1 is the first release, 2 a one-line fix, 3 a feature release (built on newer libraries). */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lauxlib.h"
#include "lua.h"
#include "lualib.h"
#include "lwip/dhcp.h"
#include "lwip/dns.h"
#include "lwip/init.h"
#include "lwip/netif.h"
#include "lwip/tcp.h"
#include "lwip/timeouts.h"
#include "lwip/udp.h"
#include "mbedtls/ctr_drbg.h"
#include "mbedtls/entropy.h"
#include "mbedtls/error.h"
#include "mbedtls/ssl.h"
#include "mbedtls/x509_crt.h"
#include "netif/ethernet.h"

extern uint32_t _sidata, _sdata, _edata, _sbss, _ebss;
extern char end;
int main(void);
static volatile uint32_t milliseconds;
static const char version[] = "corpus gateway, release " RELEASE_TEXT;

void Reset_Handler(void) {
    memcpy(&_sdata, &_sidata, (char *)&_edata - (char *)&_sdata);
    memset(&_sbss, 0, (char *)&_ebss - (char *)&_sbss);
    main();
    for (;;) {
    }
}
void Default_Handler(void) {
    for (;;) {
    }
}
void SysTick_Handler(void) { milliseconds++; }
__attribute__((section(".isr_vector"), used)) static const void *vectors[64] = {
    (void *)0x20030000, Reset_Handler, [2 ... 14] = Default_Handler, [15] = SysTick_Handler, [16 ... 63] = Default_Handler};

u32_t sys_now(void) { return milliseconds; }
void _exit(int code) {
    (void)code;
    Default_Handler();
    for (;;) {
    }
}
int _write(int file, const char *text, int length) {
    for (int i = 0; i < length; i++) *(volatile uint32_t *)0x40004404 = (uint8_t)text[i];
    return file < 0 ? -1 : length;
}
int _read(int file, char *text, int length) { return (void)file, (void)text, (void)length, 0; }
int _close(int file) { return (void)file, -1; }
int _lseek(int file, int offset, int whence) { return (void)file, (void)offset, (void)whence, 0; }
int _fstat(int file, void *stat) { return (void)file, (void)stat, -1; }
int _isatty(int file) { return (void)file, 1; }
int _open(const char *path, int flags) { return (void)path, (void)flags, -1; }
int _kill(int pid, int signal) { return (void)pid, (void)signal, -1; }
int _getpid(void) { return 1; }
int _unlink(const char *path) { return (void)path, -1; }
int _link(const char *from, const char *to) { return (void)from, (void)to, -1; }
int _gettimeofday(void *when, void *zone) { return (void)when, (void)zone, -1; }
int _times(void *buffer) { return (void)buffer, -1; }
void *_sbrk(int bytes) {
    static char *top = &end;
    char *old = top;
    top += bytes;
    return old;
}
int mbedtls_hardware_poll(void *data, unsigned char *out, size_t length, size_t *written) {
    (void)data;
    for (size_t i = 0; i < length; i++) out[i] = (unsigned char)*(volatile uint32_t *)0x50060808;
    *written = length;
    return 0;
}

struct sensor {
    float scale, zero, level;
    uint32_t samples;
#if RELEASE >= 3
    float history[24];
#endif
};
static struct sensor sensors[12];

static float smooth(struct sensor *s, float raw) {
#if RELEASE >= 2
    if (isnan(raw) || isinf(raw)) return s->level; /* the fix: a broken wire reads as infinity */
#endif
    s->level += (s->scale * raw + s->zero - s->level) / 16.0f;
#if RELEASE >= 3
    s->history[s->samples % 24] = raw;
#endif
    s->samples++;
    return s->level;
}
static int unit_smooth(lua_State *L) {
    struct sensor *s = &sensors[(unsigned)luaL_checkinteger(L, 1) % 12];
    lua_pushnumber(L, smooth(s, (float)luaL_checknumber(L, 2)));
    return 1;
}
static int unit_version(lua_State *L) {
    lua_pushstring(L, version);
    return 1;
}
#if RELEASE >= 3
static int unit_spread(lua_State *L) {
    const struct sensor *s = &sensors[(unsigned)luaL_checkinteger(L, 1) % 12];
    double sum = 0, squares = 0;
    for (int i = 0; i < 24; i++) sum += s->history[i], squares += s->history[i] * s->history[i];
    lua_pushnumber(L, sqrt(fabs(squares / 24 - sum / 24 * (sum / 24))));
    return 1;
}
static int unit_note(lua_State *L) {
    printf("%10lu %s\r\n", (unsigned long)milliseconds, luaL_checkstring(L, 1));
    return 0;
}
#endif

static mbedtls_ssl_context tls;
static mbedtls_ssl_config tls_settings;
static mbedtls_entropy_context entropy;
static mbedtls_ctr_drbg_context chance;
static mbedtls_x509_crt anchors;
static struct netif interface;
static struct tcp_pcb *connection;

static err_t send_frame(struct netif *n, struct pbuf *p) { return (void)n, (void)p, ERR_OK; }
static err_t start_interface(struct netif *n) {
    n->linkoutput = send_frame;
    n->mtu = 1500;
    n->hwaddr_len = 6;
    memcpy(n->hwaddr, "\x02\x00\x00\x00\x00\x07", 6);
    n->flags = NETIF_FLAG_BROADCAST | NETIF_FLAG_ETHARP | NETIF_FLAG_ETHERNET;
    return ERR_OK;
}
static int tls_send(void *context, const unsigned char *data, size_t length) {
    (void)context;
    return tcp_write(connection, data, (u16_t)length, TCP_WRITE_FLAG_COPY) == ERR_OK ? (int)length : -1;
}
static int tls_receive(void *context, unsigned char *data, size_t length) {
    return (void)context, (void)data, (void)length, MBEDTLS_ERR_SSL_WANT_READ;
}
static err_t connected(void *argument, struct tcp_pcb *pcb, err_t error) {
    (void)argument, (void)pcb;
    if (error == ERR_OK) mbedtls_ssl_handshake(&tls);
    return error;
}
static void resolved(const char *name, const ip_addr_t *address, void *argument) {
    (void)name, (void)argument;
    if (address) tcp_connect(connection, address, 4443, connected);
}

static const char script[] =
    "print(unit.version()) for i = 0, 11 do print(string.format('%2d %9.3f', i, unit.smooth(i, math.cos(i)))) end";

int main(void) {
    lua_State *L = luaL_newstate();
    luaL_openlibs(L);
    lua_newtable(L);
    lua_pushcfunction(L, unit_smooth), lua_setfield(L, -2, "smooth");
    lua_pushcfunction(L, unit_version), lua_setfield(L, -2, "version");
#if RELEASE >= 3
    lua_pushcfunction(L, unit_spread), lua_setfield(L, -2, "spread");
    lua_pushcfunction(L, unit_note), lua_setfield(L, -2, "note");
#endif
    lua_setglobal(L, "unit");
    for (int i = 0; i < 12; i++) sensors[i].scale = 1.0f + 0.01f * (float)i;
    if (luaL_dostring(L, script)) printf("%s\n", lua_tostring(L, -1));

    ip4_addr_t none = {0};
    ip_addr_t address;
    lwip_init();
    netif_add(&interface, &none, &none, &none, NULL, start_interface, ethernet_input);
    netif_set_default(&interface);
    netif_set_up(&interface);
    dhcp_start(&interface);

    mbedtls_entropy_init(&entropy);
    mbedtls_ctr_drbg_init(&chance);
    mbedtls_ctr_drbg_seed(&chance, mbedtls_entropy_func, &entropy, (const unsigned char *)version, sizeof version);
    mbedtls_x509_crt_init(&anchors);
    mbedtls_ssl_init(&tls);
    mbedtls_ssl_config_init(&tls_settings);
    mbedtls_ssl_config_defaults(&tls_settings, MBEDTLS_SSL_IS_CLIENT, MBEDTLS_SSL_TRANSPORT_STREAM, MBEDTLS_SSL_PRESET_DEFAULT);
    mbedtls_ssl_conf_rng(&tls_settings, mbedtls_ctr_drbg_random, &chance);
    mbedtls_ssl_conf_ca_chain(&tls_settings, &anchors, NULL);
    int result = mbedtls_ssl_setup(&tls, &tls_settings);
    if (result) {
        char text[96];
        mbedtls_strerror(result, text, sizeof text);
        puts(text);
    }
    mbedtls_ssl_set_bio(&tls, NULL, tls_send, tls_receive, NULL);
    connection = tcp_new();
    if (dns_gethostbyname("updates.example.org", &address, resolved, NULL) == ERR_OK) resolved(NULL, &address, NULL);
    for (;;) sys_check_timeouts();
}
